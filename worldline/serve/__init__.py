"""A server for OpenAI's Videos API: jobs that survive anything, done by engines in processes of their own.

`api.py` answers requests, `bodies.py` reads what was sent, `schemas.py` says what may be asked for, `orders.py` turns
it into work, `jobs.py` keeps the work, `engine.py` does it and `store.py` holds the files. The API never imports torch.
"""
