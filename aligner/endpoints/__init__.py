"""One client for every language model that aligner asks: builders, judges and the proposer of `discover`.

    async with open_client(recipe.proposer, cache=folder / "replies.sqlite", run="discover") as client:
        reply = await client.chat(ChatRequest(messages=({"role": "user", "content": "..."},), purpose="propose"))

`client.py` says how the parts stand around each other; docs/endpoints.md is for users. Nothing heavy is imported here:
a recipe is checked without torch, transformers or `openai`.
"""
