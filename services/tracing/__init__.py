"""Traces: spans of forwarded calls, registrations, transactions and published events, sent with OTLP if switched on.

Nothing here imports OpenTelemetry unless traces are on. It needs the extra `podium[otel]`.
"""
