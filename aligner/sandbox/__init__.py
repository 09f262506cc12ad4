"""Foreign code in a process of its own: everything that shuts it in, in one place to audit."""
