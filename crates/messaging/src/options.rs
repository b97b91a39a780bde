//! How the broker is connected to: over TLS or not, and as which of its users.

use std::path::Path;

use async_nats::ConnectOptions;
use settings::SecretFile;

use crate::{BrokerError, BrokerSettings};

const MAX_USER_BYTES: usize = 64;

/// Options with the certificates and the user that the settings name.
pub(crate) fn of(settings: &BrokerSettings) -> Result<ConnectOptions, BrokerError> {
    let options = with_tls(&settings.tls_dir)?;
    let (user, file) = (&settings.user, &settings.password_file);
    if user.is_empty() {
        return match file.as_os_str().is_empty() {
            true => Ok(options),
            false => Err(BrokerError::User {
                problem: "must name whose password is in broker.password_file",
            }),
        };
    }
    // Part of a subject.
    let is_fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if user.len() > MAX_USER_BYTES || !user.chars().all(is_fine) {
        return Err(BrokerError::User {
            problem: "must be 1 to 64 characters of A-Z, a-z, 0-9, - and _",
        });
    }
    let password = SecretFile {
        path: file,
        setting: "broker.password_file",
    };
    let password = password.text("a password, in UTF-8")?;
    let options = options.user_and_password(user.clone(), password.as_str().to_owned());
    // Where its answers come to: with `_INBOX` for all, each user could hear what another is answered.
    Ok(options.custom_inbox_prefix(format!("_INBOX_{user}")))
}

/// Options with the certificates of a folder, if one is named. The client reads the files at each connect, so a new
/// certificate is shown with the next connection.
fn with_tls(dir: &Path) -> Result<ConnectOptions, BrokerError> {
    let options = ConnectOptions::new();
    if dir.as_os_str().is_empty() {
        return Ok(options);
    }
    let there = |name: &str| {
        let path = dir.join(name);
        let missing = !path.is_file();
        (!missing)
            .then_some(path.clone())
            .ok_or(BrokerError::NoCertificate { path })
    };
    let options = options
        .add_root_certificates(there("ca.pem")?)
        .require_tls(true);
    // Not every broker asks who calls.
    if !dir.join("cert.pem").exists() {
        return Ok(options);
    }
    Ok(options.add_client_certificate(there("cert.pem")?, there("key.pem")?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use super::*;

    fn said(user: &str, password_file: PathBuf) -> Result<(), String> {
        let settings = BrokerSettings {
            user: user.to_owned(),
            password_file,
            ..BrokerSettings::new("nats://127.0.0.1:4222", "1s".parse().unwrap())
        };
        of(&settings).map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn a_user_needs_a_password_that_nobody_else_can_read_and_a_refusal_names_the_setting() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str, mode: u32| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let good = file("good", "a-password\n", 0o600);
        said("gpu-worker", good.clone()).unwrap();
        said("", PathBuf::new()).unwrap();
        for (user, path, words) in [
            ("", good.clone(), ["broker.user", "must name"]),
            ("a.b", good.clone(), ["broker.user", "64 characters"]),
            ("a>", good, ["broker.user", "64 characters"]),
            (
                "auth",
                folder.path().join("none"),
                ["broker.password_file", "none"],
            ),
            (
                "auth",
                file("open", "a-password", 0o644),
                ["mode 0644", "chmod 600"],
            ),
            (
                "auth",
                file("empty", "\n", 0o600),
                ["broker.password_file", "must hold a password"],
            ),
        ] {
            let text = said(user, path).unwrap_err();
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
            assert!(!text.contains("a-password"), "{text}");
        }
    }
}
