//! A bitmap backend that draws everything enlarged and then averages pixels.
//!
//! plotters' own backend places letters at whole pixels and does not smooth lines, which is hard to read at
//! the size of a figure.

use std::path::PathBuf;

use plotters::{
    prelude::*,
    style::{FontFamily, RGBAColor},
};
use plotters_backend::{BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingErrorKind};

/// Pixels that are drawn for one of the figure, in each direction.
const SCALE: u32 = 4;
/// Bytes of a pixel.
const CHANNELS: usize = 3;

type Error = <BitMapBackend<'static> as DrawingBackend>::ErrorType;
type Result = std::result::Result<(), DrawingErrorKind<Error>>;

/// A figure that becomes a PNG file.
pub(crate) struct Supersampled {
    file: PathBuf,
    size: (u32, u32),
    /// The enlarged figure.
    pixels: Vec<u8>,
}

impl Supersampled {
    /// Starts a figure of a size in pixels.
    pub(super) fn new(file: PathBuf, size: (u32, u32)) -> Self {
        let pixels = vec![0; (size.0 * size.1 * SCALE * SCALE) as usize * CHANNELS];
        Self { file, size, pixels }
    }

    fn enlarged(&mut self) -> BitMapBackend<'_> {
        BitMapBackend::with_buffer(&mut self.pixels, (self.size.0 * SCALE, self.size.1 * SCALE))
    }

    /// The figure in its own size: each pixel is the average of those that were drawn for it.
    fn averaged(&self) -> Vec<u8> {
        let (width, height, scale) = (self.size.0 as usize, self.size.1 as usize, SCALE as usize);
        let sample = |x: usize, y: usize, channel: usize| {
            usize::from(self.pixels[(y * width * scale + x) * CHANNELS + channel])
        };
        let mut pixels = Vec::with_capacity(width * height * CHANNELS);
        for y in 0..height {
            for x in 0..width {
                for channel in 0..CHANNELS {
                    let samples = (0..scale * scale)
                        .map(|place| sample(x * scale + place % scale, y * scale + place / scale, channel));
                    let average = samples.sum::<usize>() / (scale * scale);
                    pixels.push(u8::try_from(average).unwrap_or(u8::MAX));
                }
            }
        }
        pixels
    }
}

/// Where the middle of a pixel is in the enlarged figure.
fn enlarge((x, y): BackendCoord) -> BackendCoord {
    let scale = SCALE.cast_signed();
    (x * scale + scale / 2, y * scale + scale / 2)
}

/// A style with its lines enlarged.
struct Enlarged {
    color: BackendColor,
    width: u32,
}

impl Enlarged {
    fn new(style: &impl BackendStyle) -> Self {
        Self { color: style.color(), width: style.stroke_width() * SCALE }
    }
}

impl BackendStyle for Enlarged {
    fn color(&self) -> BackendColor {
        self.color
    }

    fn stroke_width(&self) -> u32 {
        self.width
    }
}

impl DrawingBackend for Supersampled {
    type ErrorType = Error;

    fn get_size(&self) -> (u32, u32) {
        self.size
    }

    fn ensure_prepared(&mut self) -> Result {
        Ok(())
    }

    fn present(&mut self) -> Result {
        let pixels = self.averaged();
        let mut file = BitMapBackend::new(&self.file, self.size);
        file.blit_bitmap((0, 0), self.size, &pixels)?;
        file.present()
    }

    fn draw_pixel(&mut self, point: BackendCoord, color: BackendColor) -> Result {
        self.draw_rect(point, point, &color, true)
    }

    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Result {
        self.draw_path([from, to], style)
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        (left, top): BackendCoord,
        (right, bottom): BackendCoord,
        style: &S,
        fill: bool,
    ) -> Result {
        if !fill {
            let corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)];
            return self.draw_path(corners, style);
        }
        let scale = SCALE.cast_signed();
        let to = ((right + 1) * scale - 1, (bottom + 1) * scale - 1);
        self.enlarged().draw_rect((left * scale, top * scale), to, &Enlarged::new(style), true)
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        path: I,
        style: &S,
    ) -> Result {
        self.enlarged().draw_path(path.into_iter().map(enlarge), &Enlarged::new(style))
    }

    fn draw_circle<S: BackendStyle>(
        &mut self,
        center: BackendCoord,
        radius: u32,
        style: &S,
        fill: bool,
    ) -> Result {
        self.enlarged().draw_circle(enlarge(center), radius * SCALE, &Enlarged::new(style), fill)
    }

    fn fill_polygon<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        corners: I,
        style: &S,
    ) -> Result {
        self.enlarged().fill_polygon(corners.into_iter().map(enlarge), &Enlarged::new(style))
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, (x, y): BackendCoord) -> Result {
        let BackendColor { alpha, rgb: (red, green, blue) } = style.color();
        let family: FontFamily<'_> = style.family();
        let font = FontDesc::new(family, style.size() * f64::from(SCALE), style.style());
        let text_style =
            font.transform(style.transform()).color(&RGBAColor(red, green, blue, alpha)).pos(style.anchor());
        let scale = SCALE.cast_signed();
        self.enlarged().draw_text(text, &text_style, (x * scale, y * scale))
    }
}
