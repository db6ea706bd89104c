"""Run an app and a web server in one Twisted program.

The app is a fire alarm, and the web page is its panel.

PYTHONPATH=examples/twistd twistd -ny examples/twistd/alarm.tac

In a second terminal, show alarms. In a third, run a detector, then read the panel:

zroute tail tcp://127.0.0.1:5749
zroute pub tcp://127.0.0.1:5748 smoke.kitchen '{"density": 0.3}'
curl http://127.0.0.1:8748/

-n keeps twistd in the foreground. Without it, twistd runs in the background and writes twistd.log.
"""

from alarm import Panel, app
from twisted.application import strports
from twisted.application.service import Application
from twisted.internet import reactor
from twisted.web.server import Site

application = Application("alarm")
service = app.service(reactor)
service.started.addErrback(lambda _: reactor.callWhenRunning(reactor.stop))  # the error is logged; no panel without an alarm
service.setServiceParent(application)
strports.service("tcp:8748:interface=127.0.0.1", Site(Panel())).setServiceParent(application)
