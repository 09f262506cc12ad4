"""Models and tokenizers: reading, changing and writing them. The only room that calls
`from_pretrained`."""
