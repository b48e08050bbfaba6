"""The errors of the S3 protocol: one table of codes, and the document that tells one.

Owns which codes there are, their HTTP status and what they say by default; and which of our own errors is
told as which. A message may name what the request itself said, never a secret, a computed signature or an
address of the cluster. After Amazon's "Error responses" page.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from moorage.gateway.s3.markup import document, element
from moorage.wire import errors

# Code: status, message. What a call knows better it says itself.
TABLE: Final[dict[str, tuple[int, str]]] = {
    "AccessDenied": (403, "Access denied."),
    "AccessForbidden": (403, "No CORS rule of the bucket allows this."),
    "AccessControlListNotSupported": (400, "This bucket does not take access control lists."),
    "AuthorizationHeaderMalformed": (400, "The Authorization header cannot be read."),
    "AuthorizationQueryParametersError": (400, "The X-Amz-* parameters of a presigned URL are wrong."),
    "BadDigest": (400, "The checksum that was sent is not that of the bytes that arrived."),
    "BadRequest": (400, "The request is not valid."),
    "BucketAlreadyExists": (409, "A bucket of this name belongs to somebody else."),
    "BucketAlreadyOwnedByYou": (409, "You have a bucket of this name already."),
    "BucketNotEmpty": (409, "The bucket still has objects or versions."),
    "ConditionalRequestConflict": (409, "Another request changed the object meanwhile: try again."),
    "EntityTooLarge": (400, "The upload is larger than an object may be."),
    "EntityTooSmall": (400, "The upload is smaller than it has to be."),
    "IllegalLocationConstraintException": (400, "Buckets cannot be made in that region here."),
    "IllegalVersioningConfigurationException": (400, "This versioning configuration is not possible."),
    "IncompleteBody": (400, "The body ended before as many bytes as were announced."),
    # Amazon has no such code; one that clients do not take for a passing trouble.
    "InsufficientStorage": (507, "The cluster has no room for this."),
    "InternalError": (500, "Something went wrong on our side: try again."),
    "InvalidAccessKeyId": (403, "There is no such access key."),
    "InvalidArgument": (400, "An argument is wrong."),
    "InvalidBucketName": (400, "This is not a valid bucket name."),
    "InvalidBucketState": (409, "The bucket's state does not allow this."),
    "InvalidChunkSizeError": (403, "A chunk other than the last is smaller than 8192 bytes."),
    "InvalidDigest": (400, "Content-MD5 is not the base64 of 16 bytes."),
    "InvalidEncryptionAlgorithmError": (400, "That encryption is not known."),
    "InvalidObjectState": (403, "The object's state does not allow this."),
    "InvalidPart": (400, "A part was not uploaded, or its ETag is another one."),
    "InvalidPartOrder": (400, "Parts must be listed by ascending number."),
    "InvalidPolicyDocument": (400, "The form's policy is not a valid document."),
    "InvalidRange": (416, "No byte of that range exists."),
    "InvalidRequest": (400, "The request is not valid."),
    "InvalidSecurity": (403, "The security information is not valid."),
    "InvalidStorageClass": (400, "There is no such storage class."),
    "InvalidTag": (400, "A tag is not valid."),
    "InvalidTargetBucketForLogging": (400, "That bucket cannot take logs."),
    "InvalidToken": (400, "Session tokens are not known here: use a permanent access key."),
    "InvalidURI": (400, "The URI cannot be read."),
    "KeyTooLongError": (400, "A key has at most 1024 bytes of UTF-8."),
    "MalformedACLError": (400, "The access control list is not well-formed or not valid."),
    "MalformedPOSTRequest": (400, "The body is not well-formed multipart/form-data."),
    "MalformedPolicy": (400, "The policy is not valid."),
    "MalformedTrailerError": (400, "The trailer of the body is not well-formed, or not as announced."),
    "MalformedXML": (400, "The XML is not well-formed, or not what this operation takes."),
    "MaxMessageLengthExceeded": (400, "The request is too large."),
    "MaxPostPreDataLengthExceeded": (400, "The form's fields before the file are too large."),
    "MetadataTooLarge": (400, "The user metadata has more than 2048 bytes."),
    "MethodNotAllowed": (405, "The method is not allowed for this resource."),
    "MissingContentLength": (411, "A length has to be sent with the body."),
    "MissingRequestBodyError": (400, "The body is empty."),
    "MissingSecurityHeader": (400, "A required header is missing."),
    "NoSuchBucket": (404, "The bucket does not exist."),
    "NoSuchBucketPolicy": (404, "The bucket has no policy."),
    "NoSuchCORSConfiguration": (404, "The bucket has no CORS configuration."),
    "NoSuchKey": (404, "There is no object with this key."),
    "NoSuchLifecycleConfiguration": (404, "The bucket has no lifecycle configuration."),
    "NoSuchObjectLockConfiguration": (404, "The object has no such lock."),
    "NoSuchPublicAccessBlockConfiguration": (404, "The bucket has no public access block."),
    "NoSuchTagSet": (404, "There are no tags."),
    "NoSuchUpload": (404, "There is no such upload: it was completed or aborted, or never begun."),
    "NoSuchVersion": (404, "There is no such version of the object."),
    "NoSuchWebsiteConfiguration": (404, "The bucket has no website configuration."),
    "NotImplemented": (501, "This is not implemented here."),
    "NotModified": (304, "Not modified."),
    "ObjectLockConfigurationNotFoundError": (404, "The bucket has no object lock configuration."),
    "OperationAborted": (409, "Another operation is changing the same resource: try again."),
    "OwnershipControlsNotFoundError": (404, "The bucket has no ownership controls."),
    "PermanentRedirect": (301, "The bucket has to be addressed by its endpoint."),
    "PreconditionFailed": (412, "A condition of the request does not hold."),
    "QuotaExceeded": (403, "The quota does not allow this."),
    "ReplicationConfigurationNotFoundError": (404, "The bucket has no replication configuration."),
    "RequestTimeTooSkewed": (403, "The request's time is too far from the time here."),
    "RequestTimeout": (400, "The body did not arrive in time."),
    "ServerSideEncryptionConfigurationNotFoundError": (404, "The bucket has no encryption configuration."),
    "ServiceUnavailable": (503, "Not available now: try again."),
    "SignatureDoesNotMatch": (
        403,
        "The signature is another one than this request and the key's secret give.",
    ),
    "SlowDown": (503, "Too many requests: try again more slowly."),
    "TooManyBuckets": (400, "You have as many buckets as you may have."),
    "UnauthorizedAccess": (403, "Access denied."),
    "UnexpectedContent": (400, "This request takes no body."),
    "UserKeyMustBeSpecified": (400, "The form has no field `key`."),
    "XAmzContentSHA256Mismatch": (400, "The body's SHA-256 is not the one that x-amz-content-sha256 says."),
}


class S3Error(Exception):
    """A request ends with this. ``details`` become elements of the document, as ``Key="a"`` does;
    ``headers`` are those that the answer has beside the usual ones."""

    def __init__(self, code: str, message: str = "", **details: str) -> None:
        self.code = code
        self.status, usual = TABLE[code]
        self.message = message or usual
        self.details = details
        self.headers: dict[str, str] = {}
        super().__init__(f"{code}: {self.message}")


def render(error: S3Error, resource: str, request_id: str) -> bytes:
    """The body of an error answer; HEAD and 304 have none. ``resource``: the path that was asked for."""
    return document(
        "Error",
        element("Code", error.code),
        element("Message", error.message),
        *(element(name, text) for name, text in error.details.items()),
        element("Resource", resource),
        element("RequestId", request_id),
        element("HostId", request_id),
        namespace="",
    )


# First match wins, so the narrow classes stand before the wide ones.
_BY_ERROR: Final[tuple[tuple[type[errors.MoorageError], str], ...]] = (
    (errors.LimitExceeded, "QuotaExceeded"),
    (errors.Busy, "OperationAborted"),
    (errors.Locked, "AccessDenied"),
    (errors.Invalid, "InvalidRequest"),
    (errors.Denied, "AccessDenied"),
    (errors.DeadlineExceeded, "ServiceUnavailable"),
    (errors.Unavailable, "ServiceUnavailable"),
    (errors.Stale, "ServiceUnavailable"),
    (errors.Overloaded, "SlowDown"),
    (errors.NoSpace, "InsufficientStorage"),
)


def error_of(error: BaseException) -> S3Error:
    """What a client is told. The words of our own errors name hosts and devices: they are for logs only."""
    if isinstance(error, S3Error):
        return error
    return S3Error(next((code for kind, code in _BY_ERROR if isinstance(error, kind)), "InternalError"))


def reason(error: S3Error) -> str:
    """The words beside the status."""
    return HTTPStatus(error.status).phrase
