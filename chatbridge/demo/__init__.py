"""The web page: conversations with a model in a browser, over `chatbridge.inference`."""
