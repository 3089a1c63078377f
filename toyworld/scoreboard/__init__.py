"""The scoreboard: each method's own claim as a number with an interval, drawn by a real ComfyUI on paired prompts and seeds.

``make scoreboard`` or ``python -m attention_loom.toyworld.scoreboard``. `row` says what a row is, `rows/` holds one small file per
method, `board` draws what is missing, `studio` runs graphs, `ledger` keeps results, `tables` writes the page. How to add a row:
`docs/adding-a-row.md`.
"""
