"""The demo page: conversations with a model in a browser, over `chatbridge.inference`."""
