"""Of a database that does not serve us it is told why, and nothing of its address."""

import psycopg
import pytest
from psycopg import errors

from fulfillment.store.failures import why

ON_SOCKET = 'connection failed: connection to server on socket "/tmp/x/.s.PGSQL.5432" failed: '
ON_HOST = 'connection failed: connection to server at "canary", port 5432 failed: '
#: As libpq 18 and psycopg 3.3 write them.
TEXTS = {
    f'{ON_HOST}FATAL:  password authentication failed for user "canary"': "user or password",
    f'{ON_HOST}FATAL:  role "canary" does not exist': "user or password",
    f'{ON_HOST}FATAL:  role "canary" is not permitted to log in': "user or password",
    f"{ON_HOST}fe_sendauth: no password supplied": "user or password",
    f'{ON_HOST}FATAL:  no pg_hba.conf entry for host "1.1.1.1", user "canary", database "canary", '
    "SSL encryption": "pg_hba.conf",
    f'{ON_HOST}FATAL:  pg_hba.conf rejects connection for host "[local]"': "pg_hba.conf",
    f'{ON_HOST}FATAL:  database "canary" does not exist': "no such database",
    f"{ON_HOST}FATAL:  sorry, too many clients already": "no connections left",
    f"{ON_HOST}FATAL:  remaining connection slots are reserved for roles with": "no connections",
    f'{ON_HOST}FATAL:  too many connections for role "canary"': "no connections left",
    f"{ON_HOST}FATAL:  the database system is starting up": "starting up",
    f"{ON_HOST}Connection refused\n\tIs the server running on that host?": "nobody listens",
    f"{ON_SOCKET}No such file or directory\n\tIs the server running?": "nobody listens",
    f"{ON_HOST}No route to host": "no way leads",
    "failed to resolve host 'canary': [Errno -2] Name or service not known": "cannot be resolved",
    "connection timeout expired": "in time",
    f"{ON_HOST}Connection timed out": "in time",
    f"{ON_HOST}server does not support SSL, but SSL was required": "SSL",
    f"{ON_HOST}SSL error: certificate verify failed": "SSL",
    'connection is bad: invalid sslmode value: "canary"': "an option of its address",
    'connection is bad: invalid integer value "canary" for connection option "port"': "an option",
    'connection is bad: could not parse network address "canary": Name or': "an option",
    "could not match 1 host names with 2 hostaddr values": "an option of its address",
    'connection is bad: weak sslmode "prefer" may not be used with sslnegotiation=direct': "option",
    f"{ON_HOST}FATAL:  -c canary requires a value": "in options",
    f'{ON_HOST}FATAL:  unrecognized configuration parameter "canary"': "in options",
    f"{ON_HOST}FATAL:  invalid command-line argument for server process: canary": "in options",
    f'{ON_HOST}FATAL:  invalid value for parameter "canary": "9"': "in options",
    'connection is bad: definition of service "canary" not found': "service",
    f"{ON_HOST}session is not read-only": "target_session_attrs",
    f"{ON_HOST}session is read-only": "target_session_attrs",
    f"{ON_HOST}server is not in hot standby mode": "target_session_attrs",
    f"{ON_HOST}channel binding required, but server authenticated client without": "prove itself",
    f'{ON_HOST}authentication method requirement "canary" failed: server did not': "prove itself",
    f'connection is bad: {ON_SOCKET}requirepeer specifies "canary", but actual': "prove itself",
    "connection is bad: GSSAPI encryption required but it is not supported over": "GSSAPI",
    "consuming input failed: server closed the connection unexpectedly": "cut off",
    "consuming input failed: SSL SYSCALL error: EOF detected": "cut off",
    "the connection is closed": "cut off",
    "canary": "OperationalError",
}
STATES: dict[type[psycopg.Error], str] = {
    errors.InvalidPassword: "user or password",
    errors.InvalidAuthorizationSpecification: "user or password",
    errors.InvalidCatalogName: "no such database",
    errors.TooManyConnections: "no connections left",
    errors.CannotConnectNow: "starting up",
    errors.ReadOnlySqlTransaction: "ReadOnlySqlTransaction",
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_connection_that_did_not_come_about_is_told_by_its_kind(text: str) -> None:
    told = why(psycopg.OperationalError(text))

    assert TEXTS[text] in told
    assert "canary" not in told


@pytest.mark.parametrize("kind", STATES, ids=lambda kind: kind.__name__)
def test_where_there_is_an_sqlstate_the_text_is_not_looked_at(kind: type[psycopg.Error]) -> None:
    assert STATES[kind] in why(kind("canary: Connection refused"))
