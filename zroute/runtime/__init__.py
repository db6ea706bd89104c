"""Runs of an app: start, delivery, drain and close.

An app runs as a Twisted service (`zroute.runtime.service`) or as a process (`zroute.runtime.runner`).
"""
