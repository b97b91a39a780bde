//! The platform with certificates on both sides of every connection between its parts.

use std::path::Path;
use std::process::Command;

use e2e::Platform;

use crate::{assert_whole, short_picture};

fn certificates(folder: &Path) {
    let script = e2e::repository().join("scripts/dev-certs.sh");
    let made = Command::new(script).arg(folder).output().unwrap();
    assert!(made.status.success(), "{made:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_services_and_the_broker_with_certificates_draw_a_picture_and_an_operator_needs_one() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let platform = Platform::start_secure(folder.path());
    let task = platform.submit(short_picture()).await.unwrap();
    assert_whole(&platform, &platform.wait_ended(&task.id).await);

    let listed = platform.keys(&["list"], Some(folder.path()));
    let text = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.status.success() && text.contains("acme"), "{text}");
    // The admin token alone is not enough.
    let without = platform.keys(&["list"], None);
    assert!(!without.status.success(), "{without:?}");
    let text = String::from_utf8(without.stderr).unwrap();
    assert!(
        text.contains("speaks TLS") && text.contains("--tls-dir"),
        "{text}"
    );
    // Nor is a certificate of a service.
    let (operator, kept) = (folder.path().join("operator"), folder.path().join("kept"));
    std::fs::rename(&operator, kept).unwrap();
    std::fs::rename(folder.path().join("gpu-worker"), &operator).unwrap();
    let other = platform.keys(&["list"], Some(folder.path()));
    assert!(!other.status.success(), "{other:?}");
    let text = String::from_utf8(other.stderr).unwrap();
    assert!(text.contains("operator.inkstone"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_reaches_a_gateway_with_a_certificate_whose_ca_it_is_given() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let platform = Platform::start_with(&[
        (
            "INKSTONE_GATEWAY__HTTP__TLS__CERT",
            &path("public/cert.pem"),
        ),
        ("INKSTONE_GATEWAY__HTTP__TLS__KEY", &path("public/key.pem")),
    ])
    .await;
    let url = platform.url().replace("http://", "https://");
    let key = platform.authorization().replace("Bearer ", "");
    let draw_at = |url: &str, options: &[&str]| {
        let mut command = Command::new(e2e::binary("inkstone"));
        command.args([
            "generate", "a 3d cat", "--steps", "2", "--url", url, "--key", &key,
        ]);
        command.args(options).arg("--output").arg(path("cat.png"));
        command.output().unwrap()
    };
    let draw = |options: &[&str]| draw_at(&url, options);
    let drawn = draw(&["--ca", &path("ca/ca.pem")]);
    assert!(drawn.status.success(), "{drawn:?}");
    let picture = std::fs::read(path("cat.png")).unwrap();
    assert!(picture.starts_with(b"\x89PNG"));
    // This machine trusts no such CA by itself.
    let stranger = draw(&[]);
    assert!(!stranger.status.success(), "{stranger:?}");
    let text = String::from_utf8(stranger.stderr).unwrap();
    assert!(text.contains("give the file of the CA"), "{text}");
    // Spoken to in the clear, it is not taken for one that is not there.
    let clear = draw_at(&platform.url(), &[]);
    let text = String::from_utf8(clear.stderr).unwrap();
    assert!(text.contains("speaks TLS; say https://"), "{text}");
    // Between the services there are no certificates here.
    let listed = platform.keys(&["list"], Some(folder.path()));
    let text = String::from_utf8(listed.stderr).unwrap();
    assert!(
        text.contains("does not speak TLS; leave out --tls-dir"),
        "{text}"
    );
}
