"""Run untrusted code in a process of its own: everything that confines it, in one place to
audit."""
