"""Tests of `zroute.jobs`."""
