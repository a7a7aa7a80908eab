#if canImport(ImageIO)
import Foundation
import ImageIO
import LaMamba
import UniformTypeIdentifiers

/// Write an image, (H, W, 3) bytes, as a PNG file.
func writePNG(_ bytes: [UInt8], width: Int, height: Int, to path: URL) throws {
    guard let provider = CGDataProvider(data: Data(bytes) as CFData),
        let space = CGColorSpace(name: CGColorSpace.sRGB),
        let image = CGImage(
            width: width, height: height, bitsPerComponent: 8, bitsPerPixel: 24, bytesPerRow: 3 * width, space: space,
            bitmapInfo: CGBitmapInfo(rawValue: CGImageAlphaInfo.none.rawValue), provider: provider, decode: nil,
            shouldInterpolate: false, intent: .defaultIntent),
        let file = CGImageDestinationCreateWithURL(path as CFURL, UTType.png.identifier as CFString, 1, nil)
    else {
        throw Refusal("\(path.path) cannot be written; is its folder there?")
    }
    CGImageDestinationAddImage(file, image, nil)
    guard CGImageDestinationFinalize(file) else {
        throw Refusal("\(path.path) cannot be written; is its folder there?")
    }
}
#endif
