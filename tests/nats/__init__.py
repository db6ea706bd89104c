"""Tests of `zroute.nats`."""
