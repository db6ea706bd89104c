"""The publishing side of an app, from ``publish`` to the frame on the transport.

On the way a message is encoded, numbered, and, as the app's options require, kept, coalesced or queued.
"""
