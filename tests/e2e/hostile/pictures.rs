//! Pictures to draw from that are none, or far more than they look.

use e2e::Platform;

use super::flate::{png, zlib_zeros};
use super::{FRONT, exchange, head, statuses, under_attack};

const BOUNDARY: &str = "a-boundary";

fn form(image: &[u8], mask: Option<&[u8]>) -> Vec<u8> {
    let part = |name: &str| {
        format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"a.png\"\r\n\r\n"
        )
    };
    let mut body =
        format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\na cat\r\n");
    body.push_str(&part("image"));
    let mut body = body.into_bytes();
    body.extend_from_slice(image);
    if let Some(mask) = mask {
        body.extend(format!("\r\n{}", part("mask")).bytes());
        body.extend_from_slice(mask);
    }
    body.extend(format!("\r\n--{BOUNDARY}--\r\n").bytes());
    body
}

/// The status and text of the answer to an edit of these files.
fn edit(platform: &Platform, image: &[u8], mask: Option<&[u8]>) -> (Vec<u16>, String) {
    let body = form(image, mask);
    let headers = format!(
        "content-type: multipart/form-data; boundary={BOUNDARY}\r\ncontent-length: {}\r\nconnection: close",
        body.len()
    );
    let mut request = head(platform, "/v1/images/edits", &headers).into_bytes();
    request.extend_from_slice(&body);
    let answer = exchange(platform, &request);
    (statuses(&answer), answer)
}

/// Each file, and what it is.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let small = zlib_zeros(64 * (1 + 64 * 3));
    let tiny = |width, height| {
        png(
            width,
            height,
            &[(b"IDAT", &zlib_zeros(1000)), (b"IEND", &[])],
        )
    };
    let picture = png(64, 64, &[(b"IDAT", &small), (b"IEND", &[])]);
    let with = |kind: &[u8; 4], data: &[u8]| {
        png(64, 64, &[(kind, data), (b"IDAT", &small), (b"IEND", &[])])
    };
    // A profile, and a text, of 256 MiB each (a name, a zero, a zero for deflate).
    let packed = [b"x\0\0".to_vec(), zlib_zeros(256 << 20)].concat();
    let frames = [2_u32.to_be_bytes(), 0_u32.to_be_bytes()].concat();
    let mut lossy = b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0".to_vec();
    // 16384 x 16384, animated.
    lossy.extend([0xff, 0x3f, 0, 0xff, 0x3f, 0]);
    lossy.extend(b"ANIM\x06\0\0\0\0\0\0\0\0\0");
    vec![
        ("50000 x 50000", tiny(50_000, 50_000)),
        ("4294967295 x 1", tiny(u32::MAX, 1)),
        (
            "2147483647 x 2147483647",
            tiny(i32::MAX as u32, i32::MAX as u32),
        ),
        ("0 x 0", tiny(0, 0)),
        (
            "data for far more than its pixels, cut short",
            png(64, 64, &[(b"IDAT", &zlib_zeros(1 << 20)[..100])]),
        ),
        ("less than its pixels", tiny(1024, 1024)),
        ("cut short", picture[..picture.len() / 2].to_vec()),
        ("a header alone", picture[..33].to_vec()),
        ("animated PNG", with(b"acTL", &frames)),
        ("animated WebP", lossy),
        (
            "a profile that unpacks to 256 MiB, and no picture",
            png(64, 64, &[(b"iCCP", &packed)]),
        ),
        (
            "a text that unpacks to 256 MiB, and no picture",
            png(64, 64, &[(b"zTXt", &packed)]),
        ),
        (
            "a chunk of 4 GiB",
            [&picture[..33], b"\xff\xff\xff\xffIDATx"].concat(),
        ),
        ("GIF", b"GIF89a\xff\xff\xff\xff\x80\0\0".to_vec()),
        ("TIFF", b"II*\0\x08\0\0\0".to_vec()),
        ("BMP", b"BM\xff\xff\xff\x7f\0\0\0\0".to_vec()),
        (
            "SVG",
            b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
                .to_vec(),
        ),
        ("text", b"a cat".to_vec()),
        ("nothing", Vec::new()),
        (
            "a JPEG's beginning",
            b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\x01\x22\0\x02\x11\x01\x03\x11\x01"
                .to_vec(),
        ),
        ("more than 16 MiB", vec![0x89; (16 << 20) + 1]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_that_are_none_or_unpack_to_gigabytes_are_refused_by_name() {
    let platform = Platform::start_services(&FRONT, &[], false).await;
    platform.allow("dev", 1000).await;
    // The largest body, a copy of it, and little else: none of the files comes to be unpacked.
    under_attack(&platform, "pictures", 96, async {
        tokio::task::block_in_place(|| {
            for (name, file) in files() {
                let (status, answer) = edit(&platform, &file, None);
                assert_eq!(status, [400], "{name}: {answer}");
                assert!(answer.contains("\"param\":\"image\""), "{name}: {answer}");
            }
        });
    })
    .await;
    // As a mask of a picture that is good, the same.
    let picture = png(
        64,
        64,
        &[(b"IDAT", &zlib_zeros(64 * (1 + 64 * 3))), (b"IEND", &[])],
    );
    under_attack(&platform, "masks", 96, async {
        tokio::task::block_in_place(|| {
            for (name, file) in files() {
                let (status, answer) = edit(&platform, &picture, Some(&file));
                assert_eq!(status, [400], "{name}: {answer}");
                assert!(answer.contains("\"param\":\"mask\""), "{name}: {answer}");
            }
        });
    })
    .await;
}
