"""Buckets and objects for programs that speak S3.

The server: ``server.py`` has the sockets, ``gateway.py`` the table of operations; those are in
``buckets.py``, ``objects.py``, ``copies.py``, ``uploads.py``, ``listings.py`` and ``forms.py``. ``call.py``
a request on its way, and what it may; ``credentials.py`` and ``records.py`` what is remembered of keys and
buckets; ``properties.py`` what is kept of an object; ``payload.py`` its body on the way in;
``multipart.py`` that of a form; ``versions.py`` what is told of versions, ``locks.py`` what is asked and
told of their locks; ``answer.py`` and ``patience.py`` the way out; ``expiry.py`` acts on lifecycle rules.

The protocol, without sockets and without a store, bytes and texts in, plain values out, time an argument
everywhere: ``request.py`` a request's head; ``routing.py`` which operation it is; ``signature.py`` who sent
it; ``chunked.py`` and ``body.py`` its body, with ``checksums.py``; ``conditions.py`` and ``ranges.py`` its
conditional headers; ``names.py`` names and limits; ``markup.py`` XML, ``documents.py`` those that come in,
``results.py`` those that go out; ``errors.py`` the codes; ``listing.py`` pages of keys; ``policy.py``,
``policy_document.py`` and ``acl.py`` who may; ``cors.py``, ``lifecycle.py`` and ``form.py`` the
configurations and the uploads of browsers; ``times.py`` points in time.
"""
