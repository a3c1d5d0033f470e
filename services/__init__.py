"""Every decision of Podium and all of its SQL; knows neither RabbitMQ nor HTTP."""
