//! The pages as they are written, and as a browser shows them.

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::{GOOSE, Run, prepare, sample, write};

const WIDTH: u32 = 1280;
const HEIGHT: u32 = 1700;
/// Starting a browser on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn what_is_written_can_be_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("made/for/it");
    let run = sample::outage();
    prepare(&folder).unwrap();
    write(&run, &folder).unwrap();
    let read: Run = serde_json::from_slice(&std::fs::read(folder.join("report.json")).unwrap()).unwrap();
    assert_eq!(format!("{:?}", read.totals), format!("{:?}", run.totals));
    assert_eq!((read.command, read.timeline.len()), (run.command.clone(), run.timeline.len()));

    let page = || std::fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(!page().contains(GOOSE), "a link to nothing");
    std::fs::write(folder.join(GOOSE), "").unwrap();
    write(&run, &folder).unwrap();
    assert!(page().contains(GOOSE));

    std::fs::write(folder.join("notes.txt"), "mine").unwrap();
    prepare(&folder).unwrap();
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["notes.txt"], "the next run's folder has nothing of this one's");
}

#[tokio::test]
async fn a_browser_shows_verdict_and_charts_in_light_and_dark() {
    if !installed() {
        assert!(std::env::var("CI").is_err(), "chromium is not on the PATH, and CI has to look at the pages");
        eprintln!("left out: chromium is not on the PATH (`cargo xtask setup` installs it)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    write(&sample::outage(), folder.path()).unwrap();
    for (scheme, is_dark) in [("1", false), ("0", true)] {
        let screen = screenshot(folder.path(), scheme).await;
        assert_eq!((screen.width, screen.height), (WIDTH, HEIGHT));
        let background = screen.at(4, 4);
        assert_eq!(background.iter().all(|&part| part < 0x60), is_dark, "{background:?}");

        // The verdict of a run that missed its goals is red; charts have their series' colours in more than a few pixels.
        let [red, blue, orange] = match is_dark {
            false => [[0xb4, 0x23, 0x18], [0x2b, 0x6c, 0xdf], [0xd9, 0x73, 0x0d]],
            true => [[0xff, 0x8f, 0x85], [0x6e, 0xa0, 0xff], [0xf5, 0xa0, 0x4a]],
        };
        let upper = screen.colours(0..HEIGHT / 3);
        assert!(upper.get(&red).is_some_and(|&pixels| pixels > 50), "no red verdict (dark: {is_dark})");
        let charts = screen.colours(HEIGHT / 4..HEIGHT);
        for ink in [blue, orange] {
            assert!(charts.get(&ink).is_some_and(|&pixels| pixels > 500), "no {ink:?} (dark: {is_dark})");
        }
        assert!(charts.len() > 100, "{} colours", charts.len());
    }
}

struct Screen {
    width: u32,
    height: u32,
    pixels: Vec<[u8; 3]>,
}

impl Screen {
    fn read(file: &Path) -> Screen {
        let file = std::io::BufReader::new(std::fs::File::open(file).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut bytes).unwrap();
        let samples = info.color_type.samples();
        assert!(info.bit_depth == png::BitDepth::Eight && samples >= 3, "{info:?}");
        let pixels = bytes[..info.buffer_size()].chunks_exact(samples);
        let pixels = pixels.map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
        Screen { width: info.width, height: info.height, pixels }
    }

    fn at(&self, x: u32, y: u32) -> [u8; 3] {
        self.pixels[(y * self.width + x) as usize]
    }

    /// How many pixels each colour has in these rows.
    fn colours(&self, rows: std::ops::Range<u32>) -> HashMap<[u8; 3], usize> {
        let mut colours = HashMap::new();
        for pixel in &self.pixels[(rows.start * self.width) as usize..(rows.end * self.width) as usize] {
            *colours.entry(*pixel).or_default() += 1;
        }
        colours
    }
}

async fn screenshot(folder: &Path, preferred_scheme: &str) -> Screen {
    let picture = folder.join(format!("screen-{preferred_scheme}.png"));
    let mut browser = Command::new("chromium");
    browser
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"])
        .arg(format!("--window-size={WIDTH},{HEIGHT}"))
        .arg(format!("--blink-settings=preferredColorScheme={preferred_scheme}"))
        .arg(format!("--user-data-dir={}", folder.join("profile").display()))
        .arg(format!("--screenshot={}", picture.display()))
        .arg(format!("file://{}", folder.join("report.html").display()))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, browser.output()).await.expect("the browser hangs").unwrap();
    assert!(picture.is_file(), "{}", String::from_utf8_lossy(&output.stderr));
    Screen::read(&picture)
}

fn installed() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join("chromium").is_file())
}
