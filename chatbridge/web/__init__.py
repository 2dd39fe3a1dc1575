"""HTTP for the API server and the demo page alike: sockets, connection deadlines, access checks, request bodies."""
