"""An app beside another service in one Twisted program: a fire alarm, and its panel on the web.

PYTHONPATH=examples/twistd twistd -ny examples/twistd/alarm.tac

In a second terminal who hears the alarm, in a third a detector, then the panel:

zroute tail tcp://127.0.0.1:5749
zroute pub tcp://127.0.0.1:5748 smoke.kitchen '{"density": 0.3}'
curl http://127.0.0.1:8748/

-n keeps it in the foreground; without it twistd goes to the background and writes twistd.log.
"""

from alarm import Panel, app
from twisted.application import strports
from twisted.application.service import Application
from twisted.internet import reactor
from twisted.web.server import Site

application = Application("alarm")
service = app.service(reactor)
service.started.addErrback(lambda _: reactor.callWhenRunning(reactor.stop))  # it is in the log; no panel without an alarm
service.setServiceParent(application)
strports.service("tcp:8748:interface=127.0.0.1", Site(Panel())).setServiceParent(application)
