//! What arrives and what is answered: one request read whole, and AWS's two error formats.

use std::fmt;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::id;

/// A request with its body, as it arrived: signatures are recomputed from this.
pub(super) struct Received {
    pub(super) parts: Parts,
    pub(super) body: Bytes,
}

impl Received {
    pub(super) fn method(&self) -> &Method {
        &self.parts.method
    }

    pub(super) fn path(&self) -> &str {
        self.parts.uri.path()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    /// The first value of a query parameter, decoded.
    pub(super) fn query(&self, name: &str) -> Option<String> {
        let query = self.parts.uri.query().unwrap_or_default();
        form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, v)| v.into_owned())
    }
}

pub(super) type Reply = Response<Full<Bytes>>;

const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

pub(super) fn json_reply(status: StatusCode, body: &impl Serialize) -> Reply {
    match serde_json::to_vec(body) {
        Ok(body) => reply(status, "application/json", body),
        Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
    }
}

pub(super) fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if let Ok(id) = HeaderValue::from_str(&id::uuid()) {
        reply.headers_mut().insert(REQUEST_ID, id);
    }
    reply
}

/// The modelled errors of EKS Auth and of EKS's associations API, by their names on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum ErrorCode {
    ThrottlingException,
    InternalServerException,
    ServiceUnavailableException,
    InvalidRequestException,
    InvalidParameterException,
    AccessDeniedException,
    InvalidTokenException,
    ExpiredTokenException,
    ResourceNotFoundException,
    ResourceInUseException,
    ResourceLimitExceededException,
}

impl ErrorCode {
    fn name(self) -> &'static str {
        match self {
            ErrorCode::ThrottlingException => "ThrottlingException",
            ErrorCode::InternalServerException => "InternalServerException",
            ErrorCode::ServiceUnavailableException => "ServiceUnavailableException",
            ErrorCode::InvalidRequestException => "InvalidRequestException",
            ErrorCode::InvalidParameterException => "InvalidParameterException",
            ErrorCode::AccessDeniedException => "AccessDeniedException",
            ErrorCode::InvalidTokenException => "InvalidTokenException",
            ErrorCode::ExpiredTokenException => "ExpiredTokenException",
            ErrorCode::ResourceNotFoundException => "ResourceNotFoundException",
            ErrorCode::ResourceInUseException => "ResourceInUseException",
            ErrorCode::ResourceLimitExceededException => "ResourceLimitExceededException",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            ErrorCode::ThrottlingException => StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::InternalServerException => StatusCode::INTERNAL_SERVER_ERROR,
            ErrorCode::ServiceUnavailableException => StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::ResourceNotFoundException => StatusCode::NOT_FOUND,
            ErrorCode::ResourceInUseException => StatusCode::CONFLICT,
            ErrorCode::InvalidRequestException
            | ErrorCode::InvalidParameterException
            | ErrorCode::AccessDeniedException
            | ErrorCode::InvalidTokenException
            | ErrorCode::ExpiredTokenException
            | ErrorCode::ResourceLimitExceededException => StatusCode::BAD_REQUEST,
        }
    }
}

/// A refusal, in the words that the client gets to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub code: &'static str,
    pub status: u16,
    pub message: String,
}

impl ApiError {
    pub(super) fn new(code: ErrorCode, message: impl Into<String>) -> ApiError {
        ApiError { code: code.name(), status: code.status().as_u16(), message: message.into() }
    }

    /// An error that belongs to AWS's front door, not to a service's model.
    pub(super) fn forbidden(code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { code, status: StatusCode::FORBIDDEN.as_u16(), message: message.into() }
    }

    fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    pub(super) fn rest_json(&self) -> Reply {
        let body = json!({ "__type": self.code, "message": self.message });
        let mut reply = json_reply(self.status(), &body);
        reply.headers_mut().insert(ERROR_TYPE, HeaderValue::from_static(self.code));
        reply
    }

    /// The format of STS's query protocol.
    pub(super) fn query_xml(&self) -> Reply {
        let fault = if self.status < 500 { "Sender" } else { "Receiver" };
        let body = format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>{fault}</Type>\
             <Code>{}</Code><Message>{}</Message></Error><RequestId>{}</RequestId></ErrorResponse>",
            self.code,
            xml_escape(&self.message),
            id::uuid(),
        );
        reply(self.status(), "text/xml", body)
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.code, self.status, self.message)
    }
}

impl std::error::Error for ApiError {}

pub(super) fn xml_escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Reads a JSON body; the message tells what is wrong and where.
pub(super) fn read_json<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, String> {
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| format!("the body is not what this call takes: {error}"))
}

/// An error of the control API.
pub(super) fn control_error(status: StatusCode, message: impl fmt::Display) -> Reply {
    json_reply(status, &json!({ "error": Value::String(message.to_string()) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_names_on_the_wire_and_in_settings_are_the_same() {
        let codes: &[ErrorCode] = clap::ValueEnum::value_variants();
        for code in codes {
            assert_eq!(serde_json::to_value(code).unwrap(), json!(code.name()));
        }
    }

    #[test]
    fn access_denied_is_a_400_as_in_the_model_of_eks_auth() {
        let error = ApiError::new(ErrorCode::AccessDeniedException, "no");
        let reply = error.rest_json();
        assert_eq!(reply.status(), 400);
        assert_eq!(reply.headers()["x-amzn-errortype"], "AccessDeniedException");
        assert!(reply.headers().contains_key("x-amzn-requestid"));
    }
}
