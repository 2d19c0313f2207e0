"""HTTP of an entry replica: connections, routes, requests in and responses out."""
