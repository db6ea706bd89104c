"""The publishing side of an app, from ``publish`` to the frame on the transport.

Each message is encoded and numbered. Depending on the app's options, it is also kept, coalesced or queued.
"""
