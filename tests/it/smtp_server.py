"""A mail server for the email sink's tests: aiosmtpd, and answers that a test asks for.

Arguments: a directory. In it `rules.json` says how to answer, read again for each command:

    port        where to listen; 0: anywhere free (only read at the start)
    tls         "starttls", "smtps" or "none" (only read at the start), with cert.pem and key.pem
    user, pass  who may log in; without them nobody has to
    connect     an answer instead of the greeting's 220
    mail        an answer to MAIL
    rcpt        answers to RCPT by address
    data        an answer to the whole mail
    data_with   answers to mails that hold a text
    cut         "before" or "after": the connection ends with the mail, which is not kept, or kept without an answer

Each mail that is kept is one line of mails.jsonl: from, to, and the text. The port is said on standard output.
"""

import asyncio
import json
import os
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult

DIR = sys.argv[1]


def rules():
    try:
        with open(os.path.join(DIR, "rules.json")) as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


class Handler:
    async def handle_MAIL(self, server, session, envelope, address, options):
        refused = rules().get("mail")
        if refused:
            return refused
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 Sender OK"

    async def handle_RCPT(self, server, session, envelope, address, options):
        refused = rules().get("rcpt", {}).get(address)
        if refused:
            return refused
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Recipient OK"

    async def handle_DATA(self, server, session, envelope):
        now = rules()
        text = envelope.content.decode("utf-8", "replace")
        refused = now.get("data")
        for part, answer in now.get("data_with", {}).items():
            if part in text:
                refused = answer
        if refused:
            return refused
        cut = now.get("cut")
        if cut != "before":
            line = {"from": envelope.mail_from, "to": envelope.rcpt_tos, "text": text, "tls": session.ssl is not None}
            with open(os.path.join(DIR, "mails.jsonl"), "a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        if cut:
            server.transport.abort()
        return "250 2.0.0 OK"


def authenticator(server, session, envelope, mechanism, data):
    now = rules()
    known = (now.get("user", "").encode(), now.get("pass", "").encode())
    if (data.login, data.password) == known:
        return AuthResult(success=True)
    return AuthResult(success=False, handled=False, message="535 5.7.8 No such user, or not this password")


class Server(SMTP):
    async def push(self, status):
        refused = rules().get("connect")
        if refused and isinstance(status, str) and status.startswith("220 ") and not self.session.extended_smtp:
            await super().push(refused)
            self.transport.close()
            return
        await super().push(status)


async def main():
    now = rules()
    tls = now.get("tls", "starttls")
    context = None
    if tls != "none":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(os.path.join(DIR, "cert.pem"), os.path.join(DIR, "key.pem"))

    def session():
        return Server(
            Handler(),
            hostname="mail.test",
            timeout=300,
            authenticator=authenticator,
            auth_required="user" in now,
            auth_require_tls=tls == "starttls",
            require_starttls=tls == "starttls",
            tls_context=context if tls == "starttls" else None,
        )

    loop = asyncio.get_running_loop()
    server = await loop.create_server(session, "127.0.0.1", now.get("port", 0), ssl=context if tls == "smtps" else None)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
