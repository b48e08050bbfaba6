"""Tasks of the metadata leader: what a committed decision still asks for outside of the state.

Each task can be ended at any step, by a crash or by a change of leader, and the next leader begins it again
from the state alone: so every step may be repeated, and the step that notes success comes last.
"""
