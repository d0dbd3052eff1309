//! STS: GetCallerIdentity, in the query protocol.

use hyper::StatusCode;

use super::app::App;
use super::id;
use super::reply::{ApiError, Received, Reply, reply, xml_escape};
use super::sigv4::{self, Scope};
use crate::clock;

/// Answers `POST /`.
pub(super) fn answer(app: &App, request: &Received) -> Reply {
    respond(app, request).unwrap_or_else(|error| error.query_xml())
}

fn respond(app: &App, request: &Received) -> Result<Reply, ApiError> {
    let action =
        form_urlencoded::parse(&request.body).find(|(key, _)| key == "Action").map(|(_, value)| value);
    match action.as_deref() {
        Some("GetCallerIdentity") => {}
        other => {
            let message =
                format!("Could not find operation {}; there is GetCallerIdentity.", other.unwrap_or("\"\""));
            return Err(ApiError { code: "InvalidAction", status: 400, message });
        }
    }
    // The global endpoint is signed for as us-east-1.
    let scope = Scope { service: "sts", regions: &[&app.cluster.region, "us-east-1"] };
    let caller = sigv4::verify(request, &scope, clock::wall(), |key| app.state().callers.get(key))
        .map_err(|invalid| invalid.query())?;
    let arn = caller.identity.arn();
    let body = format!(
        "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetCallerIdentityResult>\
         <Arn>{}</Arn><UserId>{}</UserId><Account>{}</Account></GetCallerIdentityResult>\
         <ResponseMetadata><RequestId>{}</RequestId></ResponseMetadata></GetCallerIdentityResponse>",
        xml_escape(arn),
        xml_escape(caller.identity.user_id()),
        arn.split(':').nth(4).unwrap_or_default(),
        id::uuid(),
    );
    Ok(reply(StatusCode::OK, "text/xml", body))
}
