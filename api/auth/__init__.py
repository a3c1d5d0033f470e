"""Who calls the API, and what they may do: keys, rules of routes, and browsers of other origins."""
