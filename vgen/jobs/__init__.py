"""A request, carried out: planned without torch, then run with events out and cancelling in.

Every face (command, Python, server, page, nodes) goes through `plan` and `run` and through nothing else.
"""
