"""An OpenAI-compatible server: HTTP around `inference.engine.Engine`."""
