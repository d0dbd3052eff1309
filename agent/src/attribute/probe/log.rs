//! The kernel programs' own messages.

use std::os::fd::AsFd;
use std::{fmt, io};

use aya::Ebpf;
use aya_log::EbpfLogger;

use super::{ProbeError, sys};

/// Messages are read from it, and written to the agent's log.
pub struct ProbeLog(EbpfLogger<&'static dyn log::Log>);

impl ProbeLog {
    pub(super) fn open(object: &mut Ebpf) -> Result<ProbeLog, ProbeError> {
        EbpfLogger::init(object)
            .map(ProbeLog)
            .map_err(|error| ProbeError::Object(crate::causes::chain(&error)))
    }

    /// Writes messages as they come, for ever.
    pub async fn forward(mut self) -> io::Result<()> {
        let readable = sys::readable(self.0.as_fd().try_clone_to_owned()?)?;
        loop {
            let mut ready = readable.readable().await?;
            self.0.flush();
            ready.clear_ready();
        }
    }
}

impl fmt::Debug for ProbeLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProbeLog")
    }
}
