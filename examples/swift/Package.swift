// swift-tools-version:5.9
import PackageDescription

let package = Package(
    name: "LaMamba",
    platforms: [.macOS(.v14), .iOS(.v17)],
    products: [
        .library(name: "LaMamba", targets: ["LaMamba"]),
        .executable(name: "lamamba-player", targets: ["lamamba-player"]),
    ],
    targets: [
        .target(name: "LaMamba"),
        .executableTarget(name: "lamamba-player", dependencies: ["LaMamba"]),
        .testTarget(name: "LaMambaTests", dependencies: ["LaMamba"]),
    ]
)
