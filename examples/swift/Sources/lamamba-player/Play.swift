// Samples pictures with a `coreml` bundle: an example of a player's few calls.

import Foundation
import LaMamba

#if canImport(CoreML)
import CoreML

let computeUnits: [String: MLComputeUnits] = [
    "all": .all, "cpu": .cpuOnly, "cpu-gpu": .cpuAndGPU, "cpu-ne": .cpuAndNeuralEngine,
]
#endif

var interrupted: sig_atomic_t = 0  // written by the signal's handler alone

func play(_ options: Options) async throws {
    let bundle = try ModelBundle(at: URL(fileURLWithPath: options.bundle))
    let (name, shape) = (bundle.manifest.name, bundle.manifest.sample.shape)
    let request = try options.request(bundle.manifest)
    _ = try bundle.graph(guided: false)
    #if canImport(CoreML) && canImport(ImageIO)
    guard bundle.manifest.sample.space == .image else {
        throw Refusal("\(name) makes latents, which need the decoder of their autoencoder; this player has none")
    }
    guard let units = computeUnits[options.units] else {
        throw Refusal("there are no compute units \(options.units); see --help")
    }
    let step = try await CoreMLStep(bundle, computeUnits: units)
    signal(SIGINT) { _ in interrupted = 1 }
    let images = try bundle.manifest.sample(request, with: step) { progress in
        if let preview = options.preview {
            let first = progress.preview.prefix(shape.reduce(1, *))
            try? writePNG(
                pixels(first, shape: shape), width: shape[2], height: shape[1], to: URL(fileURLWithPath: preview))
        }
        return interrupted == 0
    }
    let folder = URL(fileURLWithPath: options.out, isDirectory: true)
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    for (i, image) in images.enumerated() {
        let path = folder.appendingPathComponent("\(i).png")
        try writePNG(pixels(image, shape: shape), width: shape[2], height: shape[1], to: path)
    }
    print("\(images.count) of \(request.labels.count) pictures by \(name), seed \(request.seed), in \(folder.path)")
    if interrupted != 0 { exit(130) }
    #else
    throw Refusal("the bundle of \(name), \(shape), is sound; it runs on Apple's systems alone, which have Core ML")
    #endif
}
