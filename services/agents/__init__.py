"""Agents and their deployments as operators see and change them."""
