# What Wine cannot show of the MSI, checked by a person on a real, English Windows (10, 11, Server
# 2016+):
#   powershell -ExecutionPolicy Bypass -File check-on-windows.ps1 -Msi NEW.msi [-OldMsi OLD.msi] [-Upstream amqp://HOST]
# In an elevated prompt, on a machine where amqproxysvc is not installed. It installs, looks,
# breaks, upgrades and removes it; a line for each point, exit code 1 if one failed.
param(
    [Parameter(Mandatory = $true)][string]$Msi,
    [string]$OldMsi,
    [string]$Upstream = 'amqp://localhost'
)
$ErrorActionPreference = 'Stop'
$script:failed = 0
$name = 'amqproxysvc'
$data = Join-Path ([Environment]::GetFolderPath('CommonApplicationData')) $name
$config = Join-Path $data "$name.toml"
$exe = Join-Path $env:ProgramFiles "$name\$name.exe"
$log = Join-Path $env:TEMP 'amqproxysvc-msi.log'

function Point([string]$what, [scriptblock]$test) {
    try {
        $said = & $test
        if ($said -is [bool] -and -not $said) { throw 'not so' }
        Write-Host ("ok      {0}{1}" -f $what, $(if ($said -and $said -isnot [bool]) { ": $said" }))
    } catch {
        $script:failed++
        Write-Host ("FAILED  {0}: {1}" -f $what, $_.Exception.Message) -ForegroundColor Red
    }
}
function Setup([string[]]$arguments) {
    $p = Start-Process msiexec.exe -ArgumentList ($arguments + @('/qn', '/l*v', "`"$log`"")) -Wait -PassThru
    return $p.ExitCode
}
function Wanted($got, $want) { if ("$got" -ne "$want") { throw "is `"$got`", wanted `"$want`"" } }
# Not "Sc": Windows PowerShell has that as an alias of Set-Content, which comes first.
function ScExe([string[]]$arguments) { (& sc.exe @arguments) -join "`n" }
function HasAccess([string]$path, [string]$who, [string]$right) {
    $rules = (Get-Acl $path).Access | Where-Object { $_.IdentityReference -like "*$who*" -and $_.AccessControlType -eq 'Allow' }
    [bool]($rules | Where-Object { $_.FileSystemRights.ToString() -match $right })
}
function Listening { [bool](Get-NetTCPConnection -State Listen -LocalPort 5673 -ErrorAction SilentlyContinue) }

$principal = New-Object Security.Principal.WindowsPrincipal([Security.Principal.WindowsIdentity]::GetCurrent())
if (-not $principal.IsInRole([Security.Principal.WindowsBuiltInRole]::Administrator)) { throw 'An elevated prompt is needed.' }
if (Get-Service $name -ErrorAction SilentlyContinue) { throw "$name is installed already: uninstall it first." }
$first = if ($OldMsi) { (Resolve-Path $OldMsi).Path } else { (Resolve-Path $Msi).Path }
$Msi = (Resolve-Path $Msi).Path

Point 'the MSI carries a valid Authenticode signature (unsigned builds fail here)' { Wanted (Get-AuthenticodeSignature $Msi).Status 'Valid' }
Point 'silent installation ends with 0' { Wanted (Setup '/i', "`"$first`"", "UPSTREAM=$Upstream") 0 }
Point 'UPSTREAM is in no log (MsiHiddenProperties)' { -not (Select-String -Path $log -SimpleMatch $Upstream -Quiet -Encoding Unicode) }
Point 'the service runs' { (Get-Service $name).WaitForStatus('Running', '00:00:30'); Wanted (Get-Service $name).Status 'Running' }
Point 'it listens, on loopback only' {
    $on = (Get-NetTCPConnection -State Listen -OwningProcess (Get-CimInstance Win32_Service -Filter "Name='$name'").ProcessId).LocalAddress | Sort-Object -Unique
    Wanted ($on -join ' ') '127.0.0.1'
}
Point 'account: the virtual account' { Wanted (Get-CimInstance Win32_Service -Filter "Name='$name'").StartName "NT SERVICE\$name" }
Point 'image path quoted' { (Get-CimInstance Win32_Service -Filter "Name='$name'").PathName.StartsWith('"' + $exe + '"') }
Point 'delayed automatic start' { (ScExe 'qc', $name) -match 'AUTO_START\s+\(DELAYED\)' }
Point 'three restarts, after 5, 15, 60 s' { $f = ScExe 'qfailure', $name; ($f -match '5000') -and ($f -match '15000') -and ($f -match '60000') }
Point 'restarts after errors too (failure flag)' { (ScExe 'qfailureflag', $name) -match 'TRUE' }
Point 'SID type unrestricted' { (ScExe 'qsidtype', $name) -match 'UNRESTRICTED' }
Point 'preshutdown timeout over the drain (20 s)' { $null = (ScExe 'qpreshutdown', $name) -match '(\d{4,})'; [int]$Matches[1] -gt 20000 }
Point 'configuration: Administrators and SYSTEM full, service reads, Users nothing' {
    (HasAccess $config 'Administrators' 'FullControl') -and (HasAccess $config 'SYSTEM' 'FullControl') -and
    (HasAccess $config $name 'Read') -and -not (HasAccess $config 'Users' '.')
}
Point 'logs: the service writes, Users nothing' { (HasAccess "$data\logs\$name" $name 'Write|Modify') -and -not (HasAccess "$data\logs\$name" 'BUILTIN\Users' '.') }
Point 'the log file is written' { (Get-ChildItem "$data\logs\$name\*.log").Length -gt 0 }
Point 'event log: started, with its text and not "description cannot be found"' {
    $e = Get-WinEvent -FilterHashtable @{ LogName = 'Application'; ProviderName = $name; Id = 100 } -MaxEvents 1
    if ($e.Message -notmatch 'started') { throw $e.Message }
    $true
}
Point 'event source: the messages are the program''s own' {
    Wanted (Get-ItemProperty "HKLM:\SYSTEM\CurrentControlSet\Services\EventLog\Application\$name").EventMessageFile $exe
}
Point 'PATH holds the program directory, once' { Wanted ([Environment]::GetEnvironmentVariable('Path', 'Machine').Split(';') | Where-Object { $_.TrimEnd('\') -eq (Split-Path $exe) }).Count 1 }
Point 'Add/Remove entry with icon' {
    $k = Get-ItemProperty 'HKLM:\Software\Microsoft\Windows\CurrentVersion\Uninstall\*' | Where-Object DisplayName -eq $name
    if (-not $k.DisplayIcon) { throw 'no DisplayIcon' }
    $k.DisplayVersion
}
Point 'killed: back by itself within 15 s' {
    Stop-Process -Force -Id (Get-CimInstance Win32_Service -Filter "Name='$name'").ProcessId
    Start-Sleep 15 # the first restart comes after 5 s
    Wanted (Get-Service $name).Status 'Running'
}
Point 'reload by the command' { & $exe reload; Wanted $LASTEXITCODE 0 }
Point 'stop and start by the service manager' { Restart-Service $name; Listening }

Add-Content $config "`n# edited by hand"
$edited = Get-FileHash $config
if ($OldMsi) {
    Point 'a failing upgrade brings the old version back, running' {
        Copy-Item $config "$config.good"; Add-Content $config 'nonsense = 1'
        $rc = Setup '/i', "`"$Msi`""
        Move-Item -Force "$config.good" $config
        if ($rc -eq 0) { throw 'it did not fail' }
        Start-Service $name
        Wanted (Get-CimInstance Win32_Service -Filter "Name='$name'").StartName "NT SERVICE\$name"
    }
    Point 'upgrade ends with 0 and does not ask for a restart (3010)' { Wanted (Setup '/i', "`"$Msi`"") 0 }
    Point 'upgrade: running' { Wanted (Get-Service $name).Status 'Running' }
    Point 'upgrade: the edited configuration is kept' { Wanted (Get-FileHash $config).Hash $edited.Hash }
    Point 'downgrade refused, with the reason in the log' {
        if ((Setup '/i', "`"$first`"") -eq 0) { throw 'it was installed' }
        Select-String -Path $log -SimpleMatch 'newer version' -Quiet -Encoding Unicode
    }
}
Point 'repair brings a lost file back, running' {
    Remove-Item "$(Split-Path $exe)\LICENSE.txt"
    Wanted (Setup '/fa', "`"$Msi`"") 0
    (Test-Path "$(Split-Path $exe)\LICENSE.txt") -and (Get-Service $name).Status -eq 'Running'
}
Point 'uninstall ends with 0' { Wanted (Setup '/x', "`"$Msi`"") 0 }
Point 'service, program, event source and PATH entry are gone' {
    -not (Get-Service $name -ErrorAction SilentlyContinue) -and -not (Test-Path $exe) -and
    -not (Test-Path "HKLM:\SYSTEM\CurrentControlSet\Services\EventLog\Application\$name") -and
    [Environment]::GetEnvironmentVariable('Path', 'Machine') -notmatch $name
}
Point 'configuration and logs stay' { (Test-Path $config) -and (Get-ChildItem "$data\logs\$name\*.log") }
Point 'a failing installation leaves nothing' {
    if ((Setup '/i', "`"$Msi`"", 'UPSTREAM=http://wrong') -eq 0) { throw 'it was installed' }
    -not (Get-Service $name -ErrorAction SilentlyContinue) -and -not (Test-Path $exe)
}

Write-Host ''
Write-Host 'By eye: a double click asks for elevation by UAC, naming the signer, and shows progress;'
Write-Host 'after a restart of the machine the service starts by itself; at shutdown clients are drained.'
if ($script:failed) { Write-Host "$script:failed points FAILED"; exit 1 }
Write-Host 'all points ok'
