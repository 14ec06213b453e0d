"""The recurrent layer and what is asked of it: solutions, streams, queries, explanations, read-outs."""
