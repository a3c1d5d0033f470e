"""The console: HTML pages for people, beside the API that programs use."""
