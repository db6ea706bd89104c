"""What can move an app's messages, besides the memory of `zroute.testing`; each implements `zroute.transport`."""
