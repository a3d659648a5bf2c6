"""Which degree a request runs at, and the latency model that says so."""
