"""The engine of vLLM servers, spoken to over HTTP."""
