"""The plugin ``zroute`` of twist and twistd.

Twisted finds it in this folder, which has no ``__init__.py``.
"""

from twisted.application.service import ServiceMaker

zroute = ServiceMaker("zroute", "zroute.cli.twist", "Run zroute apps: zroute MODULE[:APP]...", "zroute")
