"""One client for every language model that aligner asks: builders, judges and the proposer of
`discover`.

    cache = folder / "replies.sqlite"
    async with open_client(recipe.proposer, cache=cache, run="discover") as client:
        messages = ({"role": "user", "content": "..."},)
        reply = await client.chat(ChatRequest(messages=messages, purpose="propose"))

`client.py` says how the parts stand around each other; docs/endpoints.md is for users. Nothing
heavy is imported here: a recipe is checked without torch, transformers or `openai`.
"""
