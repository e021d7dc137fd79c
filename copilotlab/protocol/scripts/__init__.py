"""The steps of the protocol that Redis takes whole: Lua scripts, one file each, with their keys and arguments inside.

A real server runs them, and so does the simulated one of `copilotlab.lab.simulated_redis`.
"""
