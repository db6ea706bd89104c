"""One run of an app: what opens, delivers, drains and closes, as a Twisted service and as a process."""
