"""The built-in reward functions.

Enter at `table`, which has one record for each built-in reward: a new one needs a record there. Each module holds the
functions of one kind: `text` (answers, length, repetition), `tags` (format), `choice`, `facts`, `code` (unit tests),
`working` (steps of arithmetic), `gym` (Reasoning Gym), `judge` (a language model as the judge; `endpoint` sends its
requests).

For other rooms: the reward functions themselves, and `text.content`, which returns the text of a completion that is a
string or a list of chat messages.
"""
