"""Models and tokenizers: loading, changing and saving them. The only room that calls
`from_pretrained`."""
