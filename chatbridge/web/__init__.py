"""What the server and the page have in common: sockets, connections, names that they answer to, bodies that arrive."""
