// Sampler tables: docs/bundle.md, section 5. All in float64, rounded to float32 at the end.

import Foundation

public enum Sampler: String, Decodable, CaseIterable, Sendable {
    case ddpm, ddim
    case dpmpp2m = "dpmpp-2m"
}

/// One step of a run: the timestep, which graph, whether noise is drawn, and the coefficients.
public struct Row: Decodable, Equatable, Sendable {
    public let t: Float
    public let guided, noisy: Bool
    public let coef: [Float]  // 8
}

/// S whole timesteps falling from T - 1 to 0; S is 1 ... T.
public func spacedTimesteps(total: Int, steps: Int) -> [Int] {
    if steps == 1 { return [total - 1] }
    let stride = Double(total - 1) / Double(steps - 1)
    return (0..<steps).map { Int((Double(steps - 1 - $0) * stride).rounded(.toNearestOrEven)) }
}

/// The table of a run: strictly falling timesteps inside 0 ..< T, a strength of guidance and where it is limited to.
public func rows(
    _ alphas: [Double], sampler: Sampler, timesteps: [Int], clip: Double, strength: Double = 2,
    interval: ClosedRange<Double>? = nil
) -> [Row] {
    let last = timesteps.count - 1
    var lowVariance = 0.0
    return timesteps.indices.map { i in
        let a = alphas[timesteps[i]]
        let b = i < last ? alphas[timesteps[i + 1]] : 1
        let before = i > 0 ? alphas[timesteps[i - 1]] : nil
        var coef = [(1 / a).squareRoot(), (1 / a - 1).squareRoot()]
        switch sampler {
        case .ddpm:
            let beta = 1 - a / b
            if i < last || last == 0 {  // the last row's variance is 0: the one before stands in for its logarithm
                lowVariance = i < last ? log(beta * (1 - b) / (1 - a)) : log(beta)
            }
            coef += [beta * b.squareRoot() / (1 - a), (1 - b) * (a / b).squareRoot() / (1 - a)]
            coef += [0, lowVariance, log(beta)]
        case .ddim:
            let ratio = ((1 - b) / (1 - a)).squareRoot()
            coef += [b.squareRoot() - ratio * a.squareRoot(), ratio, 0, 0, 0]
        case .dpmpp2m:
            let kept = (1 - b).squareRoot() / (1 - a).squareRoot()
            let m = b.squareRoot() - kept * a.squareRoot()
            var history = 0.0
            if let before, i < last {
                let r = (halfLogSNR(a) - halfLogSNR(before)) / (halfLogSNR(b) - halfLogSNR(a))
                history = -m / (2 * r)
            }
            coef += [m - history, kept, history, 0, 0]
        }
        return Row(
            t: Float(timesteps[i]), guided: strength != 1 && interval?.contains(Double(timesteps[i])) ?? true,
            noisy: sampler == .ddpm && i < last, coef: (coef + [clip]).map { Float($0) })
    }
}

private func halfLogSNR(_ a: Double) -> Double {
    log(a / (1 - a)) / 2
}
