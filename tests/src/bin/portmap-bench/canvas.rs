//! Figures: one drawing that is written as SVG and as PNG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::{
    coord::Shift,
    prelude::*,
    style::{
        FontStyle, register_font,
        text_anchor::{HPos, Pos, VPos},
    },
};

mod supersampled;

use self::supersampled::Supersampled;

/// The font of all figures.
pub(crate) const FONT: &str = "sans-serif";
/// Text and axes.
pub(crate) const INK: RGBColor = RGBColor(40, 40, 40);
/// Lines behind the data.
pub(crate) const FAINT: RGBColor = RGBColor(225, 225, 225);

/// The result of drawing with a backend of plotters.
pub(crate) type Drawn<B> = Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

/// The width of all figures in pixels: texts are readable at this width.
pub(crate) const WIDTH: u32 = 800;
/// The height of a figure's heading in pixels.
pub(crate) const HEADING: u32 = 70;

/// Colours that colour-blind people tell apart (Okabe and Ito).
pub(crate) const BLUE: RGBColor = RGBColor(0, 114, 178);
pub(crate) const VERMILION: RGBColor = RGBColor(213, 94, 0);
pub(crate) const SKY: RGBColor = RGBColor(86, 180, 233);
pub(crate) const ORANGE: RGBColor = RGBColor(230, 159, 0);
pub(crate) const GREY: RGBColor = RGBColor(120, 120, 120);

/// The style of ordinary text.
pub(crate) fn text_style<'a>(horizontal: HPos, size: u32, color: RGBColor) -> TextStyle<'a> {
    (FONT, size).into_font().color(&color).pos(Pos::new(horizontal, VPos::Center))
}

/// The style of bold text, which begins at its place.
pub(crate) fn bold_style<'a>(size: u32, color: RGBColor) -> TextStyle<'a> {
    // `FontDesc::style` would keep the ordinary font.
    let font = FontDesc::new(FONT.into(), f64::from(size), FontStyle::Bold);
    font.color(&color).pos(Pos::new(HPos::Left, VPos::Center))
}

/// A figure that is written as SVG and as PNG.
pub(crate) struct Figure {
    /// The name of its files, without ending.
    pub(crate) name: &'static str,
    /// Its height in pixels.
    pub(crate) height: u32,
}

impl Figure {
    /// Draws the figure with both backends. They have different types, hence two functions.
    pub(crate) fn draw<'a>(
        &self,
        directory: &'a Path,
        on_svg: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Drawn<SVGBackend<'a>>,
        on_png: impl FnOnce(&DrawingArea<Supersampled, Shift>) -> Drawn<Supersampled>,
    ) -> Result<()> {
        load_font()?;
        let size = (WIDTH, self.height);
        let file = |ending| directory.join(format!("{}.{ending}", self.name));
        let (svg, png) = (file("svg"), file("png"));
        on_svg(&SVGBackend::new(&svg, size).into_drawing_area())
            .map_err(|error| anyhow!("cannot draw {}: {error}", svg.display()))?;
        on_png(&Supersampled::new(png.clone(), size).into_drawing_area())
            .map_err(|error| anyhow!("cannot draw {}: {error}", png.display()))
    }
}

/// Loads the font, so that figures look the same on every machine.
fn load_font() -> Result<()> {
    for (style, font) in
        [(FontStyle::Normal, dejavu::sans::regular()), (FontStyle::Bold, dejavu::sans::bold())]
    {
        register_font(FONT, style, font).map_err(|_invalid| anyhow!("the font cannot be read"))?;
    }
    Ok(())
}

/// Fills the background, and writes the finding and the measurement.
pub(crate) fn heading<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    title: &str,
    subtitle: &str,
) -> Drawn<B> {
    area.fill(&WHITE)?;
    area.draw_text(title, &bold_style(19, INK), (16, 24))?;
    area.draw_text(subtitle, &text_style(HPos::Left, 13, INK), (16, 50))
}
