//! What plots are drawn on, and with.

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

/// The font of all plots.
pub(crate) const FONT: &str = "sans-serif";
/// Text and axes.
pub(crate) const INK: RGBColor = RGBColor(40, 40, 40);
/// Lines behind the data.
pub(crate) const FAINT: RGBColor = RGBColor(225, 225, 225);

/// What drawing on a kind of paper comes to.
pub(crate) type Drawn<B> = Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

/// A plot that is drawn as SVG and as PNG.
pub(crate) struct Sheet {
    /// Name of its files.
    pub(crate) name: &'static str,
    /// Width and height in pixels.
    pub(crate) size: (u32, u32),
}

impl Sheet {
    /// Draws the same on both kinds of paper, which have different types.
    pub(crate) fn draw<'a>(
        &self,
        directory: &'a Path,
        on_svg: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Drawn<SVGBackend<'a>>,
        on_png: impl FnOnce(&DrawingArea<BitMapBackend<'_>, Shift>) -> Drawn<BitMapBackend<'a>>,
    ) -> Result<()> {
        load_font()?;
        let file = |ending| directory.join(format!("{}.{ending}", self.name));
        let (svg, png) = (file("svg"), file("png"));
        on_svg(&SVGBackend::new(&svg, self.size).into_drawing_area())
            .map_err(|error| anyhow!("cannot draw {}: {error}", svg.display()))?;
        on_png(&BitMapBackend::new(&png, self.size).into_drawing_area())
            .map_err(|error| anyhow!("cannot draw {}: {error}", png.display()))
    }
}

/// Loads the font, so that plots look the same wherever they are drawn.
fn load_font() -> Result<()> {
    for (style, font) in
        [(FontStyle::Normal, dejavu::sans::regular()), (FontStyle::Bold, dejavu::sans::bold())]
    {
        register_font(FONT, style, font).map_err(|_invalid| anyhow!("the font cannot be read"))?;
    }
    Ok(())
}

/// Makes the paper white and writes what the plot is about.
pub(crate) fn heading<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    title: &str,
    subtitle: &str,
) -> Drawn<B> {
    let left = Pos::new(HPos::Left, VPos::Center);
    area.fill(&WHITE)?;
    let bold = (FONT, 24).into_font().style(FontStyle::Bold).color(&INK).pos(left);
    area.draw_text(title, &bold, (28, 30))?;
    area.draw_text(subtitle, &(FONT, 15).into_font().color(&INK).pos(left), (28, 60))
}
